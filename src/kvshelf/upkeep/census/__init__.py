"""How much lies in a root, and how old it is, from samples: for ``kvshelf ls`` and ``top``.

Reads names and times only, follows no link, writes nothing but a file of a moment
(``kvshelf.disk.clock``). Needs no extension.
"""
