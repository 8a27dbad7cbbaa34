"""Constructors that add arguments to those of their base without repeating them."""

import inspect


def show_inherited_arguments(cls: type) -> None:
    """
    Let ``inspect`` (and with it ``help``, Sphinx, the zoo) see the arguments of the base class behind ``**kwargs``.

    ``def __init__(self, *args, own=1, **kwargs)`` is shown with all arguments, the own ones last of all but
    ``_init_setup_model``; an own argument that the base has, too, shows the own default in the base's place.

    :param cls: class whose constructor is to be described; left alone if it takes no ``**kwargs``
    """
    init = cls.__dict__.get("__init__")
    if init is None or not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
        return
    own = {p.name: p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY}
    parameters = inspect.signature(cls.__mro__[1].__init__).parameters.values()  # type: ignore[misc]
    base = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    last = base.pop("_init_setup_model", None)
    shown = {name: p.replace(default=own.pop(name).default) if name in own else p for name, p in base.items()}
    init.__signature__ = inspect.Signature([*shown.values(), *own.values(), *([last] if last else [])])
