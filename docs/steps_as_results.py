"""What the reference shows of tasks whose body returns `Steps[T]`: a function that returns `T`."""

from typing import Any

from griffe import ExprSubscript, Extension, Function


class StepsAsResults(Extension):
    """Puts the result's type in the place of the steps."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Called for each function that was read."""
        returns = func.returns
        if isinstance(returns, ExprSubscript) and str(returns.left) == "Steps":
            func.returns = returns.slice
