"""The only code that reads Ultralytics heads: one module a head, each turning a forward pass into views."""
