"""What processes that compute are to have in their environment before torch is loaded."""

COMPUTE_ENVIRONMENT = {
    # Threads that spin while they wait take the cores from the other processes. So many rounds are
    # tens of microseconds, about what a wake-up costs: the gaps between a layer's products.
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Products compiled for a number of rows, half a MB each; by default 1,024 are kept, twice.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
