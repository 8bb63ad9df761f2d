"""From what is wanted and what is there to what is done: pure.

    observed     what is there, as frozen data        actions      what can be done
    rollout      new templates, images first checked  scaling      drains, replicas
    plan         all actions of one reconcile         conditions, status    what is said of it

No clock, no calls: times and answers come in with what was observed.
"""
