"""What type checkers see of the fields: a column on the class, a value on an instance, or None with null=True."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar, overload

from typing_extensions import Self

from . import FlagField, InstantField, Int64Field, TextField

V = TypeVar("V")

class _Typed(Generic[V]):
    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> V: ...
    def __set__(self, instance: object, value: V) -> None: ...

class TypedJSON(_Typed[V]): ...

class TypedInstant(_Typed[V]):
    @overload
    def __new__(cls, *args: Any, null: Literal[True], **kwargs: Any) -> InstantField[datetime | None]: ...
    @overload
    def __new__(cls, *args: Any, null: Literal[False] = ..., **kwargs: Any) -> InstantField[datetime]: ...

class TypedFlag(_Typed[V]):
    @overload
    def __new__(cls, *args: Any, null: Literal[True], **kwargs: Any) -> FlagField[bool | None]: ...
    @overload
    def __new__(cls, *args: Any, null: Literal[False] = ..., **kwargs: Any) -> FlagField[bool]: ...

class TypedInt64(_Typed[V]):
    @overload
    def __new__(cls, *args: Any, null: Literal[True], **kwargs: Any) -> Int64Field[int | None]: ...
    @overload
    def __new__(cls, *args: Any, null: Literal[False] = ..., **kwargs: Any) -> Int64Field[int]: ...

class TypedText(_Typed[V]):
    @overload
    def __new__(cls, *args: Any, null: Literal[True], **kwargs: Any) -> TextField[str | None]: ...
    @overload
    def __new__(cls, *args: Any, null: Literal[False] = ..., **kwargs: Any) -> TextField[str]: ...

class TypedVector(_Typed[V]): ...
