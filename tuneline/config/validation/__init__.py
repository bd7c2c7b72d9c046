"""Rules across sections: compatible options, and existence of user code."""
