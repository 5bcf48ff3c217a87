"""Who gets which resources: a pure core without clock, database or I/O. Rows and doorbells are infra/pool's."""
