"""The step on a GPU: the same mathematics as beside it, in few kernels, over memory that is laid out once.

`token2wav.py` and what it is made of is the oracle. Here a step reads and writes the slots of its streams in place, for
streams of any position, any voice and any length up to the step's, and nothing in it waits for the host, so that it
can be captured in a CUDA graph (`graphs.py`).
"""
