// Package flowtest joins mover/sender and mover/receiver over real TLS on loopback, through a proxy that cuts and delays, and attacks
// the invariants of docs/consistency.md. It holds no product code.
package flowtest
