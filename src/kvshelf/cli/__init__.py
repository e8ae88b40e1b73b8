"""The ``kvshelf`` command: looks at shelves. One module a command; needs neither vLLM nor torch."""
