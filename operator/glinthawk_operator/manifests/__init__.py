"""What a resource wants of Kubernetes, as manifests: pure, from the spec alone.

    context    the resource, names and images          applied    what is there already
    config     settings of each process                pods       what all pods have in common
    gateway, stages, attention, check                  services, policies, secrets
    build      desired(): all of it

It asks nobody, decides nothing over time, and does not know how manifests are applied.
"""
