"""Where audit events come from besides our own API."""
