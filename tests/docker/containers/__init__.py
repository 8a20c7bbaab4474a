"""What the tests in containers are made of: images without a registry, Compose, a balancer that knows 4-tuples only, clients."""
