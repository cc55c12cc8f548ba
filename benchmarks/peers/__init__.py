"""llavakit beside other engines on a CPU: the same weights, the same requests, in turn.

Each contender runs in a process of its own, once a round, so that a noisy minute hits all of
them and the memory of one is not counted for another. Engines that are not installed are skipped.
"""
