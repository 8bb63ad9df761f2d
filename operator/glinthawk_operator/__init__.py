"""The Kubernetes operator: turns a GlinthawkDeployment into pods, and scales its memory tier.

    handlers > reconcile > cluster | manifests | autoscaler > crd

It shares no code with the services: the two meet at the custom resource, the names of settings,
metrics, and the gateway's control API as JSON.
"""
