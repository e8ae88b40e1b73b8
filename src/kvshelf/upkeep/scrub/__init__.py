"""Scrubbing: verifies every chunk of a shelf and removes what is bad. ``scrubber.Scrubber`` is it.

    cli -> scrubber -> verify, orphans, unused -> folders -> files

A library that yields findings; ``kvshelf scrub`` prints them. See docs/howto/verify.md.
"""
