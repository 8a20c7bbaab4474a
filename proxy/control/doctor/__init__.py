"""``qproxy doctor``: whether everything is there that a configuration needs to serve, and how what is missing is mended.

``system`` asks the kernel, ``ports`` who listens; ``files`` looks at certificates and the state folder, ``backends`` at DNS and at them.
Each gives findings. Nothing is changed.
"""
