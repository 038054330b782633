"""Discrete-event simulation of replicas behind a balancer, to plan for more machines than one has.

Its clock and its processes are SimPy's; the sizes of batches are the service's own (`next_batch_size`).
"""
