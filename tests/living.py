"""What lives in this process, as the garbage collector sees it."""

import gc


def living(kind: type) -> list:
    """Every object of exactly this type, those too that conftest has put aside by `gc.freeze`."""
    gc.unfreeze()
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is kind]
