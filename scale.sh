set -ex
docker-compose up --detach --no-recreate --scale gateway=3 --scale agent=3
node=$(docker ps --latest --quiet --filter label=com.docker.compose.service=agent)
docker-compose exec -T app tether node drain $node
until docker-compose exec -T app tether nodes | grep -Eq "^$node +up, drained( |$)"; do sleep 1; done
docker-compose up --detach --no-recreate --scale gateway=2 --scale agent=2
