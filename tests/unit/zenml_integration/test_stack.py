"""The embedded stack: stores of earlier releases keep working."""

import pytest
from zenml.client import Client
from zenml.models import FlavorUpdate

from tuneline.zenml_integration import orchestrator, stack

pytestmark = pytest.mark.zenml


@pytest.mark.parametrize("command", [stack.open_store, stack.init], ids=["open_store", "init"])
def test_a_flavor_of_an_earlier_release_gets_its_current_module(project, command):
    client = Client()
    (flavor,) = client.list_flavors(name=orchestrator.FLAVOR)
    old = "tuneline.workflow.orchestrator.ScheduledLocalOrchestratorFlavor"
    client.zen_store.update_flavor(flavor.id, FlavorUpdate(source=old))

    command()

    (flavor,) = client.list_flavors(name=orchestrator.FLAVOR)
    assert flavor.source == f"{orchestrator.__name__}.ScheduledLocalOrchestratorFlavor"
