"""Replicas and machines whose times were measured (benchmarks/README.md)."""

from benchmarks.simulation.scenario import Duration, EngineSpec, MachineSpec, ReplicaSpec

H200 = EngineSpec(batch_s=0.000458, image_s=0.0000733, max_batch_size=128, slots=2)
"""ViT-B/16 in bfloat16: 1,884 images a second in batches of 1, 13,318 in batches of 256."""

CORES = 16
_LOOP_S = 0.0012
_DECODE = Duration(0.0032, 0.2)
"""105 KB while all cores are busy. The variation is an assumption."""

_START_S = 40.0
"""With the cache of compiled models."""

H200_PROCESS = ReplicaSpec(_DECODE, CORES, H200, _LOOP_S, start_s=_START_S)
"""The only process on the machine."""

H200_QUARTER = ReplicaSpec(_DECODE, CORES // 4, H200, _LOOP_S, start_s=_START_S)
"""One of four processes that share the machine."""

H200_ALONE = MachineSpec(replicas=1, cores=CORES)
H200_SHARED = MachineSpec(replicas=4, cores=CORES)

CPU_REPLICA = ReplicaSpec(
    Duration(0.0023, 0.2),
    decoders=2,
    engine=EngineSpec(0.0046, 0.0074, max_batch_size=7, slots=2, independent_streams=True, variation=0.1),
    loop_s=0.0006,
    start_s=10.0,
)
"""The bundled model on two cores: 166 images a second in batches of 1, 249 in batches of 8, two at a time."""

CPU_MACHINE = MachineSpec(replicas=1, cores=2)
