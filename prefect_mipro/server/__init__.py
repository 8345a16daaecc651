"""The self-hosted backend. Downwards: app, routes, services, then store and upstream."""
