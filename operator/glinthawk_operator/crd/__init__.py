"""The custom resource: what a user may say, what the operator says back, and their schema.

    values, pods, parts, scaling, tiers    the parts of a spec
    spec, status                           the two halves of the resource
    rules                                  what holds between fields, as CEL
    schema, generate                       the models as a CustomResourceDefinition
    quantity                               Kubernetes quantities as exact numbers

Nothing here speaks to a cluster, or knows what pods a spec becomes.
"""
