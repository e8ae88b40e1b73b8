"""How much lies on a shelf, and how old it is, from samples: for ``kvshelf ls``, ``du``, ``top``.

Reads names and times only, writes nothing, follows no link. Needs no extension.
"""
