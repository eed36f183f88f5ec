from tests.cache.conftest import architecture
from tests.engine import engine

__all__ = ["architecture", "engine"]
