"""What keeps a shelf in order: census, eviction, scrub."""
