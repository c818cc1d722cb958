"""Device code of Windlass, its build, its slow references. `ops` is the public face; nothing here knows the product."""
