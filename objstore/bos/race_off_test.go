//go:build !race

package bos_test

const raceEnabled = false
