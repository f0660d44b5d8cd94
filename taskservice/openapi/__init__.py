"""The OpenAPI document, made from what the routes declare and the schemas that they use."""
