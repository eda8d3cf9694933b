"""What a request costs on its way through the mesh, beside a bare gRPC echo chain of the same number of hops and a Redis GET."""
