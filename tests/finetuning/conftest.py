from tests.cache.conftest import architecture  # noqa: F401
