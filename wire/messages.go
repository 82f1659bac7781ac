// Package wire is the Mover protocol on the wire: frames, their limits, TLS, and the names in certificates.
// The specification is docs/protocol.md.
package wire

import (
	"github.com/moverd/mover/internal/digest"
)

// Type is a frame's type; values as in docs/protocol.md.
type Type uint8

const (
	TypeHello Type = iota + 1
	TypeWelcome
	TypeError
	TypeNotice
	TypePing
	TypePong
	TypeOpen
	TypeOpened
	TypeCheck
	TypeDiffer
	TypeOffer
	TypeNeed
	TypeData
	TypePut
	TypeAck
	TypeCommit
	TypeCommitted
	TypeAbort
	TypeAborted
	TypeReadBack
	TypeRoot
	TypeLeaves
	TypeRelease
	TypeReleased
	TypeState
	TypeFlowState
	TypeKeep
	TypeKept
	TypeDemand
	TypeGrant
	TypePrints
	TypePages
	TypeAgain
	TypeCall
	TypeResult
	TypeChunks

	TypeSpent Type = 40
)

// Limits of the protocol.
const (
	HeaderSize   = 12
	MaxPayload   = 8<<20 + 64<<10  // bytes of a frame's payload
	MaxPlain     = 8 << 20         // plain bytes of a batch
	MaxLeaves    = 512             // leaves of an offer
	MaxItems     = 1024            // items of a put
	MaxPages     = MaxPlain / 4096 // pages of the needed leaves of an offer
	MaxRanges    = 4096            // seq ranges of an ack
	MaxOpened    = 65536           // seq ranges of an OPENED
	MaxGroups    = 4096            // groups of a check
	MaxConns     = 16
	MaxName      = 128
	MaxIdentity  = 512
	MaxText      = 4096
	Version      = 1
	CapZstd      = 1 << 0
	CapKeep      = 1 << 1 // KEEP and KEPT are understood
	CapShape     = 1 << 2 // DEMAND and GRANT are understood; the gateway's: it shares a line out
	CapPages     = 1 << 3 // PRINTS, PAGES and AGAIN are understood
	CapObjects   = 1 << 4 // the flow moves objects: CALL, RESULT and CHUNKS are understood
	CapLease     = 1 << 5 // the connection holds a lease for what goes past the gateway, which SPENT tells, and carries no data
	KeepaliveMS  = 10_000
	DeadMS       = 30_000
	ALPN         = "mover/1"
	HelloMagic   = 0x4d4f5652 // "MOVR"
	FlagFrozen   = 1 << 0     // OPEN
	FlagReclaim  = 1 << 1     // OPEN
	FlagProven   = 1 << 0     // COMMIT
	FlagRehearse = 1 << 0     // KEEP
	FlagCutover  = 1 << 1     // KEEP
	FlagPrints   = 1 << 0     // NEED: the prints of what is needed may save some of it
	CodecPlain   = 0
	CodecZstd    = 1
	ScopeTouched = 1
	ScopeAll     = 2

	// MaxBulk is the largest payload that DATA or PUT can have: what ReadFrame may ask its get for.
	MaxBulk = 2 + MaxItems*itemSize + 37 + MaxPlain
	// MaxTTLMS bounds the time of a lease.
	MaxTTLMS = 60_000
	// MaxSpent bounds what is told at once, so that sums do not overflow.
	MaxSpent = 1 << 50
	// MaxSize bounds volumes, offsets and ends of items, so that no sum of two overflows an int64.
	MaxSize = 1 << 62
	// MaxConnBytes is where a connection should be replaced: a TLS 1.3 key is good for 2^24.5 full records
	// of AES-GCM (RFC 8446, 5.5), and crypto/tls never changes it by itself.
	MaxConnBytes = 256 << 30
)

// Codes of ERROR.
const (
	CodeProtocol uint16 = iota + 1
	CodeVersion
	CodeDenied
	CodeFenced
	CodeRefused
	CodeTargetIO
	CodeBusy
	CodeCorrupt
	CodeInternal
	CodeStopping
)

// ItemKind is the kind of an item of PUT.
type ItemKind uint8

const (
	ItemData       ItemKind = 1
	ItemZero       ItemKind = 2
	ItemFree       ItemKind = 3
	ItemUnreadable ItemKind = 4
)

type (
	// Hello opens a connection.
	Hello struct {
		MinVersion, MaxVersion uint16
		Capabilities           uint64
		Link                   [16]byte
		Conn                   uint8
		Flow, Agent            string
	}
	// Welcome accepts it.
	Welcome struct {
		Version      uint16
		Capabilities uint64
		KeepaliveMS  uint32
		Window       uint64
		State        FlowState
	}
	// FlowState is mover.FlowState on the wire.
	FlowState struct {
		Phase      uint8
		Generation [16]byte
		Epoch      uint64
		VolumeSize uint64
		TargetSize uint64
		Pass       [16]byte
		Mode       uint8
		Known      uint64
		Identity   string
	}
	// Error ends a connection. It is an error value; Is maps codes to sentinels.
	Error struct {
		Code    uint16
		RetryMS uint32
		Text    string
	}
	// Notice tells why something takes time.
	Notice struct {
		Code        uint16
		Done, Total uint64
		Text        string
	}
	// Ping and Pong carry a cookie.
	Ping struct{ Cookie uint64 }
	Pong struct{ Cookie uint64 }
	// Open begins or resumes a pass.
	Open struct {
		Pass        [16]byte
		Kind        uint8
		Consistency uint8
		Flags       uint16
		Generation  [16]byte
		Epoch       uint64
		VolumeSize  uint64
		BlockSize   uint32
		LeafSize    uint32
		Estimate    uint64
		Identity    string
	}
	// Range is an inclusive range of seqs.
	Range struct{ First, Last uint32 }
	// Opened answers Open.
	Opened struct {
		Pass [16]byte
		Mode uint8
		Done []Range
	}
	// Check asks which groups differ.
	Check struct {
		First   uint64
		Digests []digest.Digest
	}
	// Differ answers Check and Leaves.
	Differ struct {
		N      uint16
		Bitmap []byte
	}
	// Run is n leaves from First.
	Run struct {
		First uint64
		N     uint16
	}
	// Offer offers leaves by digest.
	Offer struct {
		Runs    []Run
		Digests []digest.Digest
	}
	// Need answers Offer.
	Need struct {
		N            uint16
		Bitmap       []byte
		Same, Copied uint16
		Flags        uint8
	}
	// Prints answers a Need that asks for it: the print of each page of 4 KiB of the needed leaves, in order. Only the last page may be short.
	Prints struct{ Prints []uint64 }
	// Pages answers Prints.
	Pages struct {
		N      uint16
		Bitmap []byte // pages that DATA has to bring
	}
	// Again answers Data: a leaf made of pages that were found is not what was offered. The batch is offered once more.
	Again struct{}
	// Data carries the leaves that were needed, or, after Pages, what was needed of them.
	Data struct {
		Codec   uint8
		Plain   uint32
		Payload []byte
	}
	// Item is one extent of a Put.
	Item struct {
		Kind     ItemKind
		Off, Len uint64
	}
	// Put carries extents without offering them.
	Put struct {
		Items   []Item
		Codec   uint8
		Plain   uint32
		Digest  digest.Digest
		Payload []byte
	}
	// Ack names durable batches.
	Ack struct{ Ranges []Range }
	// Counts is mover.Counts on the wire.
	Counts struct{ Offered, Same, Copied, Sent, Put, Zero, Free, Unreadable uint64 }
	// Commit ends a pass.
	Commit struct {
		Pass        [16]byte
		Batches     uint32
		Consistency uint8
		Flags       uint16
		UnixNano    int64
		Counts      Counts
	}
	// Committed answers Commit.
	Committed struct {
		Pass, Generation [16]byte
		Epoch            uint64
		Mode             uint8
		Counts           Counts
	}
	// Abort drops a pass.
	Abort   struct{ Pass [16]byte }
	Aborted struct{ Pass [16]byte }
	// ReadBack asks for the target's root.
	ReadBack struct{ Scope uint8 }
	// Root answers ReadBack.
	Root struct {
		Digest                 digest.Digest
		Leaves, Free, ReadBack uint64
	}
	// Leaves asks which leaves differ.
	Leaves struct {
		First   uint64
		Digests []digest.Digest
	}
	// Release ends the gateway's hold of the target.
	Release struct {
		Digest     digest.Digest
		Generation [16]byte
		Epoch      uint64
		Report     string
	}
	// Released answers Release.
	Released struct {
		Generation [16]byte
		Epoch      uint64
	}
	// State asks for FlowState.
	State struct{}
	// Keep confirms what the target's point is worth, and has a copy of it kept (C13).
	Keep struct {
		Moment      [16]byte // shared by the points of a group that were taken under one freeze
		Members     uint16   // flows of the group
		Flags       uint16
		Consistency uint8
		Generation  [16]byte
		Epoch       uint64
		UnixNano    int64 // of the freeze
		Group       string
	}
	// Kept answers Keep.
	Kept struct {
		Consistency uint8  // what the point is recorded as now; 0: refused, nothing has changed
		Point       string // the copy; empty: none is kept
		Text        string // why not
	}
	// Demand tells what the flow would send on the line of the connection that carries it.
	Demand struct {
		Class   uint8  // 0 nothing, 1 bulk, 2 delta, 3 cutover, 4 the last delta of one
		Serial  uint32 // of the last GRANT that is kept to
		Want    uint64 // bytes/s of IP packets, at most MaxSize: as much as there is
		Backlog uint64 // bytes that are known to wait
	}
	// Grant is the flow's lease on that line.
	Grant struct {
		Serial uint32 // counts up when Rate changes
		Rate   uint64 // bytes/s of IP packets; MaxSize: no limit; 0: no further frame of data
		TTLMS  uint32 // the lease ends then
		Safe   uint64 // bytes/s without a lease
		Line   string
		Why    string // what bounds the line now
	}
	// Spent tells what went over the line past the gateway since the last Spent.
	Spent struct{ Bytes uint64 } // of IP packets
)
