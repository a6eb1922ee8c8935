"""Many settings: planned once each, cached by content, run here, in processes or on a cluster, and drawn."""
