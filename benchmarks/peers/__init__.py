"""One module for each system: ``measure(request)`` returns its figures."""
