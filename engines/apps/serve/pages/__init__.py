"""Pages of the server: a form, the API's description, and the OpenAPI document that both are drawn from."""
