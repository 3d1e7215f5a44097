"""S3 on loopback, by moto: one bucket, and one user whose signatures are checked as botocore makes them.

Says in a line of JSON where it is and with which keys. Each line that it reads is a wish, answered in one line; at the end
of them it ends:

    seen        what it was asked, what there is, and how many uploads in parts are neither finished nor ended
    busy N      the next N requests are told to slow down
"""

import json
import os
import sys
import threading

from moto import settings
from moto.core import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug import Request, Response
from werkzeug.serving import make_server

SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

BUCKET, REGION = sys.argv[1:]


class Observed:
    """The server, with what it was asked, and moments at which it has no time."""

    def __init__(self):
        self.inner = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()
        self.asked, self.busy = [], 0

    def __call__(self, environ, start_response):
        request = Request(environ)
        with self.lock:
            self.asked.append(f"{request.method} {request.full_path.rstrip('?')}")
            refuses, self.busy = self.busy > 0, max(0, self.busy - 1)
        if refuses:
            # What is not read would break the connection, and not be an answer.
            request.get_data()
            return Response(SLOW_DOWN, 503, content_type="application/xml")(environ, start_response)
        return self.inner(environ, start_response)


def keys():
    """Those of a user who may do everything in S3."""
    iam = iam_backends[ACCOUNT]["aws"]
    iam.create_user("us-east-1", "agent")
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    iam.put_user_policy("agent", "all", json.dumps({"Version": "2012-10-17", "Statement": allow}))
    return iam.create_access_key("agent")


def main():
    bucket = s3_backends[ACCOUNT]["aws"].create_bucket(BUCKET, REGION)
    key = keys()
    # From now on each request is checked.
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    app = Observed()
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(port=server.server_port, key=key.access_key_id, secret=key.secret_access_key)
    for line in sys.stdin:
        match line.split():
            case ["seen"]:
                with app.lock:
                    say(asked=app.asked, unfinished=len(bucket.multiparts), objects=sorted(bucket.keys))
            case ["busy", many]:
                with app.lock:
                    app.busy = int(many)
                say()
    # Without waiting for connections that clients keep open.
    os._exit(0)


def say(**what):
    print(json.dumps(what), flush=True)


main()
