"""The OpenAPI document, made of what the routes declare and of the schemas that they use."""
