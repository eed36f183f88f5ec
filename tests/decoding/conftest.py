from tests.engine import engine

__all__ = ["engine"]
