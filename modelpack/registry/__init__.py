"""A remote repository over the OCI distribution API 1.1. The only door to urllib3.

``client.connect`` is the way in; ``credentials`` and ``network`` hold what it needs and load without urllib3.
"""
