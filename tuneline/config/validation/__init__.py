"""Rules across sections: which choices can be combined, and which user code is named."""
