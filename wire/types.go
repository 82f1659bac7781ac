package wire

import "fmt"

const (
	itemSize   = 17 // kind u8, offset u64, length u64
	runSize    = 10 // first u64, n u16
	rangeSize  = 8  // first u32, last u32
	countsSize = 64
	stateSize  = 68 // of FLOW STATE without its string
)

// belongs says whether a frame has to carry a seq.
type belongs uint8

const (
	free    belongs = iota // a request, its answer or news about it: any seq
	alone                  // belongs to nothing: 0
	inBatch                // belongs to a batch or a call: 1 or more
)

// kinds has what the header of a frame can be checked for, by type. Payloads outside [least, most] are refused before
// memory is given for them.
var kinds = [...]struct {
	name        string
	least, most int
	seq         belongs
}{
	TypeHello:     {"HELLO", 37, 37 + 2*MaxName, alone},
	TypeWelcome:   {"WELCOME", 22 + stateSize, 22 + stateSize + MaxIdentity, alone},
	TypeError:     {"ERROR", 8, 8 + MaxText, free},
	TypeNotice:    {"NOTICE", 20, 20 + MaxText, free},
	TypePing:      {"PING", 8, 8, alone},
	TypePong:      {"PONG", 8, 8, alone},
	TypeOpen:      {"OPEN", 70, 70 + MaxIdentity, free},
	TypeOpened:    {"OPENED", 21, 21 + MaxOpened*rangeSize, free},
	TypeCheck:     {"CHECK", 10 + 32, 10 + MaxGroups*32, free},
	TypeDiffer:    {"DIFFER", 3, 2 + MaxGroups/8, free},
	TypeOffer:     {"OFFER", 2 + runSize + 32, 2 + MaxLeaves*(runSize+32), inBatch},
	TypeNeed:      {"NEED", 7, 7 + MaxLeaves/8, inBatch},
	TypeData:      {"DATA", 6, 5 + MaxPlain, inBatch},
	TypePut:       {"PUT", 2 + itemSize + 37, MaxBulk, inBatch},
	TypeAck:       {"ACK", 2 + rangeSize, 2 + MaxRanges*rangeSize, alone},
	TypeCommit:    {"COMMIT", 31 + countsSize, 31 + countsSize, free},
	TypeCommitted: {"COMMITTED", 41 + countsSize, 41 + countsSize, free},
	TypeAbort:     {"ABORT", 16, 16, free},
	TypeAborted:   {"ABORTED", 16, 16, free},
	TypeReadBack:  {"READBACK", 1, 1, free},
	TypeRoot:      {"ROOT", 56, 56, free},
	TypeLeaves:    {"LEAVES", 10 + 32, 10 + MaxLeaves*32, free},
	TypeRelease:   {"RELEASE", 58, 58 + MaxText, free},
	TypeReleased:  {"RELEASED", 24, 24, free},
	TypeState:     {"STATE", 0, 0, free},
	TypeFlowState: {"FLOWSTATE", stateSize, stateSize + MaxIdentity, free},
	TypeKeep:      {"KEEP", 55, 55 + MaxName, free},
	TypeKept:      {"KEPT", 5, 5 + MaxName + MaxText, free},
	TypeDemand:    {"DEMAND", 21, 21, alone},
	TypeGrant:     {"GRANT", 28, 28 + MaxName + MaxText, alone},
	TypePrints:    {"PRINTS", 2 + 8, 2 + MaxPages*8, inBatch},
	TypePages:     {"PAGES", 3, 2 + MaxPages/8, inBatch},
	TypeAgain:     {"AGAIN", 0, 0, inBatch},
	TypeCall:      {"CALL", 1, MaxPayload, inBatch},
	TypeResult:    {"RESULT", 2, MaxPayload, inBatch},
	TypeChunks:    {"CHUNKS", 2 + chunkSize, 2 + MaxOffered*chunkSize, inBatch},
	TypeSpent:     {"SPENT", 8, 8, alone},
}

// Known tells whether version 1 has this type.
func (t Type) Known() bool { return int(t) < len(kinds) && kinds[t].name != "" }

func (t Type) String() string {
	if !t.Known() {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return kinds[t].name
}

// Bulk tells whether the payload of this type is given memory by the caller of ReadFrame.
func (t Type) Bulk() bool { return t == TypeData || t == TypePut }

// TypeOf is the type of the frame that carries m, or 0.
func TypeOf(m Message) Type {
	switch m.(type) {
	case *Hello:
		return TypeHello
	case *Welcome:
		return TypeWelcome
	case *Error:
		return TypeError
	case *Notice:
		return TypeNotice
	case *Ping:
		return TypePing
	case *Pong:
		return TypePong
	case *Open:
		return TypeOpen
	case *Opened:
		return TypeOpened
	case *Check:
		return TypeCheck
	case *Differ:
		return TypeDiffer
	case *Offer:
		return TypeOffer
	case *Need:
		return TypeNeed
	case *Data:
		return TypeData
	case *Put:
		return TypePut
	case *Ack:
		return TypeAck
	case *Commit:
		return TypeCommit
	case *Committed:
		return TypeCommitted
	case *Abort:
		return TypeAbort
	case *Aborted:
		return TypeAborted
	case *ReadBack:
		return TypeReadBack
	case *Root:
		return TypeRoot
	case *Leaves:
		return TypeLeaves
	case *Release:
		return TypeRelease
	case *Released:
		return TypeReleased
	case *State:
		return TypeState
	case *FlowState:
		return TypeFlowState
	case *Keep:
		return TypeKeep
	case *Kept:
		return TypeKept
	case *Demand:
		return TypeDemand
	case *Grant:
		return TypeGrant
	case *Prints:
		return TypePrints
	case *Pages:
		return TypePages
	case *Again:
		return TypeAgain
	case *Call:
		return TypeCall
	case *Result:
		return TypeResult
	case *Chunks:
		return TypeChunks
	case *Spent:
		return TypeSpent
	}
	return 0
}

// New returns an empty message of type t, or nil.
func New(t Type) Message {
	switch t {
	case TypeHello:
		return new(Hello)
	case TypeWelcome:
		return new(Welcome)
	case TypeError:
		return new(Error)
	case TypeNotice:
		return new(Notice)
	case TypePing:
		return new(Ping)
	case TypePong:
		return new(Pong)
	case TypeOpen:
		return new(Open)
	case TypeOpened:
		return new(Opened)
	case TypeCheck:
		return new(Check)
	case TypeDiffer:
		return new(Differ)
	case TypeOffer:
		return new(Offer)
	case TypeNeed:
		return new(Need)
	case TypeData:
		return new(Data)
	case TypePut:
		return new(Put)
	case TypeAck:
		return new(Ack)
	case TypeCommit:
		return new(Commit)
	case TypeCommitted:
		return new(Committed)
	case TypeAbort:
		return new(Abort)
	case TypeAborted:
		return new(Aborted)
	case TypeReadBack:
		return new(ReadBack)
	case TypeRoot:
		return new(Root)
	case TypeLeaves:
		return new(Leaves)
	case TypeRelease:
		return new(Release)
	case TypeReleased:
		return new(Released)
	case TypeState:
		return new(State)
	case TypeFlowState:
		return new(FlowState)
	case TypeKeep:
		return new(Keep)
	case TypeKept:
		return new(Kept)
	case TypeDemand:
		return new(Demand)
	case TypeGrant:
		return new(Grant)
	case TypePrints:
		return new(Prints)
	case TypePages:
		return new(Pages)
	case TypeAgain:
		return new(Again)
	case TypeCall:
		return new(Call)
	case TypeResult:
		return new(Result)
	case TypeChunks:
		return new(Chunks)
	case TypeSpent:
		return new(Spent)
	}
	return nil
}
