"""Recipes that travel: `client.put_adapter("units", text, files={"rows.jsonl": data.id})`."""

from collections.abc import Mapping
from pathlib import Path

from loco.client.http import Transport, path_of, understood
from loco.contracts.files import atomic_write
from loco.contracts.looks import Look, LookRequest
from loco.contracts.recipes import RecipeText, RecipeVersion
from loco.contracts.removals import AdapterRemoval

#: Seconds that a look takes at most, and one before it.
_LOOK_SECONDS = 260.0


class RecipeMethods:
    """The client's methods of recipes."""

    _transport: Transport

    def put_adapter(
        self,
        name: str,
        recipe: str,
        *,
        files: Mapping[str, str] | None = None,
        if_match: str | None = None,
    ) -> RecipeText:
        """Makes an adapter on the server, or changes its recipe; all at once, or nothing.

        Args:
            name: of the adapter.
            recipe: the text of its adapter.yaml.
            files: data files that it names, each with the data set that holds it (`push`).
            if_match: `etag` of the recipe that is there.

        Raises:
            RecipeChanged: there is a recipe, and `if_match` is not its.
            InvalidRequest, DataError: the recipe cannot be used; names the field.
            Forbidden: the key is no admin's.
        """
        answer = self._transport.request(
            "PUT",
            path_of("adapters", name),
            body={"recipe": recipe, "files": dict(files or {})},
            headers={"If-Match": f'"{if_match}"'} if if_match else None,
            repeatable=False,
        )
        return understood(RecipeText, answer)

    def remove_adapter(self, name: str) -> AdapterRemoval:
        """Deletes an adapter that was put on the server, once no version and no job of it is left.

        Raises:
            Conflict: there are some; the message lists them.
            Forbidden: the key is no admin's.
        """
        answer = self._transport.request("DELETE", path_of("adapters", name), repeatable=False)
        return understood(AdapterRemoval, answer)

    def look(self, request: LookRequest) -> Look:
        """Rows as the server's training environment will see them.

        Raises:
            Unseen: it has none, or not the base's tokenizer.
        """
        answer = self._transport.request(
            "POST",
            "/looks",
            body=request.model_dump(mode="json"),
            repeatable=True,
            read_timeout=_LOOK_SECONDS,
        )
        return understood(Look, answer)

    def recipe(self, name: str) -> RecipeText:
        """An adapter's recipe as it is written, and the files it names."""
        return understood(RecipeText, self._transport.get(f"{path_of('adapters', name)}/recipe"))

    def recipes(self, name: str) -> list[RecipeVersion]:
        """The newest 50 recipes that were put for an adapter, newest first."""
        page = self._transport.get(f"{path_of('adapters', name)}/recipes", limit=50)
        return [understood(RecipeVersion, entry) for entry in page["data"]]

    def recipe_file(self, name: str, file: str, path: str | Path) -> Path:
        """Brings a data file of a recipe here.

        Args:
            name: of the adapter.
            file: as `recipe` names it.
            path: file to write.
        """
        target = Path(path)
        address = f"{path_of('adapters', name)}/files/{path_of(file).lstrip('/')}"
        with (
            self._transport.stream(address, headers={}) as answer,
            atomic_write(target) as out,
        ):
            for piece in answer.iter_bytes():
                out.write(piece)
        return target
