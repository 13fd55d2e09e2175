"""An MCP server over the orders, as another team might run it. `mcp_servers.yaml` says how it is started."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from examples.refund_desk.orders import Order, read_orders

server = MCPServer("orders")


@server.tool()
def find_orders(email: str) -> dict[str, str]:
    """Find the orders of a customer: what was bought, by order id."""
    return {order.order_id: order.item for order in read_orders().values() if order.email == email}


@server.tool()
def get_order(order_id: str) -> Order:
    """Read one order: who bought what for how much, what happened to it, and what the customer noted."""
    order = read_orders().get(order_id)
    if order is None:
        raise ToolError(f"there is no order {order_id!r}; find_orders tells a customer's")
    return order


if __name__ == "__main__":
    server.run("stdio")
