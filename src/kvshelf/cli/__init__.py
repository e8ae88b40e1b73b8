"""The ``kvshelf`` command: looks at shelves. One module a command; needs neither vLLM nor torch."""

import os

# Before NumPy is imported: its OpenBLAS starts a thread a core, fails loudly where none is to be
# had, and no command multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
