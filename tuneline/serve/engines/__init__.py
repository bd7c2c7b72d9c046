"""Inference engines behind one interface (`interface.Engine`)."""
