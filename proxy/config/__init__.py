"""The configuration: YAML files in, one checked ``Configuration`` out, and from that the frozen ``Snapshot`` of the data path.

``source`` reads YAML and remembers where everything stood; ``model_*`` say what may be written; ``load`` puts the files together and
finds every mistake at once; ``material`` reads certificates; ``compile_*`` make the Snapshot; ``watch`` sees certificate files change.
"""
