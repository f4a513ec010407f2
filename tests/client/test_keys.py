"""Keys and the audit trail from a script."""

import pytest

from loco import Client, InvalidRequest, NotFound, Scope
from loco.contracts.errors import Forbidden, Unauthorized
from loco.ledger.keys import Keys

pytestmark = pytest.mark.redis


@pytest.fixture
def admin(live_api, redis_url, namespace):
    keys = Keys.connect(redis_url, namespace=namespace)
    _, key = keys.create("desk", scope=Scope.ADMIN, owner="root")
    keys.close()
    with Client(live_api.url, key) as client:
        yield client


def test_keys_are_made_listed_and_revoked(admin, live_api):
    made = admin.create_key("ci", owner="anna", expires="90d")
    assert made.scope is Scope.SUBMIT
    with Client(live_api.url, made.key) as anna:
        assert anna.submit("math", profile="tiny").owner == "anna"
        with pytest.raises(Forbidden, match="needs a key with scope admin"):
            anna.api_keys()
        assert [key.name for key in admin.api_keys()] == ["desk", "ci"]
        assert admin.revoke_key(made.id).id == made.id
        with pytest.raises(Unauthorized):
            list(anna.jobs())
    with pytest.raises(NotFound):
        admin.revoke_key(made.id)
    with pytest.raises(InvalidRequest, match="expires"):
        admin.create_key("x", expires="soon")
    trail = [(event.action, event.outcome) for event in admin.audit(page_size=2)]
    assert trail == [
        ("revokeKey", "ok"),
        ("submitJob", "ok"),
        ("createKey", "ok"),
    ]
    refused = [(event.action, event.status) for event in admin.audit(refused=True, page_size=2)]
    assert refused == [("createKey", 422), ("revokeKey", 404), ("refused", 401)]
