"""What is wrong with the files for Kubernetes and Nomad, that no schema says."""
