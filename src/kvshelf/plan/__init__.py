"""Planning: what a shelf of some capacity would have saved, from a trace of requests.

    trace     requests as chains of blocks, read from a file
    shape     bytes of KV a token
    lru       exact LRU for every capacity, in one pass
    simulate  an order of eviction, one capacity a run
    answer    hit rate, GPU seconds and money against capacity
    replay    the same requests against a real shelf

Returns results; prints nothing. Only ``replay`` writes files.
"""
