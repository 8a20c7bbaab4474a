"""Who runs where: a supervisor that holds the sockets, a controller that knows the configuration, workers that serve.

``supervisor`` binds, starts the others and starts them again; it knows the standard library only, and reads nothing from outside.
``controller`` reads the configuration, probes backends, watches certificates and answers the admin API. ``worker`` is the path of requests:
listeners, exchanges, connections to backends. They talk over ``channel``; ``team`` is what the controller knows of its workers, in this
process or in others.
"""
