"""Eight devices for every test: the flag must be set before jax starts."""

import os

flag = '--xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
