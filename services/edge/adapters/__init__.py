"""The other services, Redis, the key file and the spool, as the domain's ports see them."""
