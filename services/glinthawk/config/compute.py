"""What processes that compute are to have in their environment before torch is loaded."""

COMPUTE_ENVIRONMENT = {
    # Threads that spin while they wait take the cores from the other processes.
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Products compiled for a number of rows, half a MB each; by default 1,024 are kept, twice.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
